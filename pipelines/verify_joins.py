"""The proofs of ``nextscale verify`` as joins: the plan against shards, tokens and index.

Views that are there when they run: ``plan``, ``packs`` (the index), ``packed``, ``unread`` and
``tokens`` (`pipelines.document_digests`), ``sources`` (component, replica, replicas, of),
and ``due`` (component, doc_id, least and most copies that the plan should hold). Every query gives
damages as (pack, doc_id, what); DuckDB sorts on disk, but joins and groups in memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import duckdb

from infra.schema import uniform_sql
from packing.cost import Coefficients
from packing.packs import Facts
from packing.slices import Slicing
from pipelines.pack_phase import PackPhase
from pipelines.replicas import COUNTS
from pipelines.verify_parts import MAX_SHOWN, RELATIVE, Damage, Damages
from pipelines.verify_plan import differences, index, plan_alone, quotas, recorded


@dataclass(frozen=True)
class Totals:
    """What was proven, in numbers."""

    documents: int  # copies and pieces in packs
    distinct: int
    rejected: tuple[tuple[str, int], ...]
    left_out: int  # documents with tokens of which the plan holds nothing
    num_packs: int
    num_shards: int
    num_bytes: int
    num_tokens: int
    mean_cost: float
    most_cost: float


def join(
    con: duckdb.DuckDBPyConnection, facts: Facts, phase: PackPhase, told: Mapping[str, Any]
) -> Damages:
    """Everything that shards, plan, tokens and index say of each other and that differs."""
    con.execute("CREATE TEMP TABLE damages (pack BIGINT, doc_id VARCHAR, what VARCHAR)")
    of = phase.coefficients
    queries = [
        *plan_alone(facts),
        *index(),
        _shards(),
        *_tokens(of),
        _contents(),
        *_whole(phase.slicing),
        _starts(phase.slicing),
    ]
    for query in (*queries, *quotas(phase), *recorded(told)):
        con.execute(f"INSERT INTO damages SELECT pack, doc_id, what FROM ({query})")
    [(count,)] = con.execute("SELECT count(*) FROM damages").fetchall()
    rows = con.execute(
        "SELECT coalesce(any_value(p.shard), ''), coalesce(d.pack, -1), coalesce(d.doc_id, ''), "
        "d.what FROM damages AS d LEFT JOIN packs AS p USING (pack) "
        f"GROUP BY d.pack, d.doc_id, d.what ORDER BY ALL LIMIT {MAX_SHOWN}"
    ).fetchall()
    found = Damages()
    found.add([Damage(*row) for row in rows], count)
    return found


def totals(con: duckdb.DuckDBPyConnection) -> Totals:
    """The sums of the table that is printed."""
    [(documents, distinct)] = con.execute(
        "SELECT count(*), count(DISTINCT (component, doc_id)) FROM plan WHERE pack IS NOT NULL"
    ).fetchall()
    rejected = con.execute(
        "SELECT reason, count(*) FROM plan WHERE reason IS NOT NULL GROUP BY ALL ORDER BY 1"
    ).fetchall()
    [(left_out,)] = con.execute(
        "SELECT count(*) FROM tokens AS t WHERE replica = 0 AND NOT failed AND NOT EXISTS "
        "(FROM plan AS p WHERE p.component = t.component AND p.part = t.part "
        "AND p.token_row = t.token_row)"
    ).fetchall()
    [packs] = con.execute(
        "SELECT count(*), count(DISTINCT shard), coalesce(sum(length), 0)::BIGINT, "
        "coalesce(sum(num_tokens), 0)::BIGINT, coalesce(avg(cost), 0), coalesce(max(cost), 0) "
        "FROM packs"
    ).fetchall()
    return Totals(documents, distinct, tuple(rejected), left_out, *packs)


def _shards() -> str:
    """Every row of the plan at its place in the shards, and nothing else there."""
    names = ("copy", "first_segment", "num_segments", *COUNTS)
    differs = differences([(name, f"d.{name}", f"p.{name}") for name in names], "the plan says")
    return (
        "SELECT coalesce(p.pack, d.pack) AS pack, coalesce(d.doc_id, p.doc_id) AS doc_id, CASE "
        "WHEN d.doc_id IS NULL THEN 'is missing: the plan has it at position ' || p.position "
        "WHEN p.doc_id IS NULL THEN 'is at position ' || d.position "
        "|| ', where the plan has nothing' "
        "WHEN d.doc_id <> p.doc_id THEN 'is at position ' || d.position || ', where the plan has ' "
        f"|| p.doc_id ELSE {differs} END AS what "
        "FROM (FROM plan WHERE pack IS NOT NULL AND pack NOT IN (SELECT pack FROM unread)) AS p "
        "FULL JOIN packed AS d ON d.pack = p.pack AND d.position = p.position "
        f"WHERE d.doc_id IS NULL OR p.doc_id IS NULL OR d.doc_id <> p.doc_id OR {differs} <> ''"
    )


def _tokens(of: Coefficients) -> list[str]:
    """Every row of the plan, packed or rejected, against the row of the tokens that it names."""
    differs = differences([(name, f"due_{name}", name) for name in COUNTS], "the plan says")
    row = "'row ' || token_row || ' of part ' || part || ' of ' || of"
    joined = (
        "SELECT p.*, s.of, t.doc_id AS found, t.failed, len(t.forms) AS has, "
        "list_sum(mine.lengths)::BIGINT AS due_num_tokens, "
        # Every position sees its segment, and all segments before it in the document.
        "(list_sum(mine.pairs) + (list_sum(mine.lengths) ** 2 - list_sum(list_transform("
        "mine.lengths, lambda n: n * n))) // 2)::BIGINT AS due_num_pairs, "
        # Nothing stands before the first token to predict it.
        "(list_sum(mine.predicted) - if(list_filter(list_zip(mine.lengths, mine.predicted), "
        "lambda x: x[1] > 0)[1][2] > 0, 1, 0))::BIGINT AS due_num_loss "
        "FROM plan AS p JOIN sources AS s ON s.component = p.component AND s.replica = 0 "
        "LEFT JOIN tokens AS t ON t.component = p.component AND t.part = p.part "
        "AND t.token_row = p.token_row AND t.replica = 0, "
        "LATERAL (SELECT list_slice(t.lengths, p.first_segment + 1, p.first_segment + "
        "p.num_segments) AS lengths, list_slice(t.pairs, p.first_segment + 1, p.first_segment + "
        "p.num_segments) AS pairs, list_slice(t.predicted, p.first_segment + 1, p.first_segment + "
        "p.num_segments) AS predicted) AS mine"
    )
    queries = [
        f"SELECT pack, doc_id, CASE WHEN found IS NULL THEN {row} || ' is not there' "
        f"WHEN found <> doc_id THEN {row} || ' is document ' || found "
        f"WHEN failed THEN {row} || ' has failed' "
        "WHEN first_segment < 0 OR num_segments < 1 OR first_segment + num_segments > has "
        "THEN 'the plan takes ' || num_segments || ' segments from ' || first_segment "
        f"|| ', ' || {row} || ' has ' || has "
        f"ELSE 'by ' || {row} || ' ' || {differs} END AS what FROM ({joined}) "
        "WHERE found IS NULL OR found <> doc_id OR failed OR first_segment < 0 OR num_segments < 1 "
        f"OR first_segment + num_segments > has OR {differs} <> ''",
        "SELECT pack, doc_id, 'is of component ' || component || ', which there is not' AS what "
        "FROM plan WHERE component NOT IN (SELECT component FROM sources)",
    ]
    due = cost_sql(of)
    queries.append(
        f"SELECT pack, doc_id, printf('costs %.12g, the plan says %.12g', {due}, cost) AS what "
        f"FROM plan WHERE cost IS NULL OR abs(cost - {due}) > {RELATIVE} * {due}"
    )
    return queries


def cost_sql(of: Coefficients) -> str:
    """`packing.cost.cost` over columns of counts."""
    return (
        f"(num_tokens * {of.per_token!r}::DOUBLE + num_pairs * {of.per_pair!r}::DOUBLE "
        f"+ num_loss * {of.per_loss!r}::DOUBLE)"
    )


def _contents() -> str:
    """Every document in the shards against its slice of its row, in its copy's replica."""
    mine = {
        name: f"list_slice(t.{name}, p.first_segment + 1, p.first_segment + p.num_segments)"
        for name in ("forms", "inputs", "targets")
    }
    # The first segment that differs is named; the others of a document mostly differ with it.
    first = {
        name: f"list_filter(range(1, len(d.{name}) + 1), "
        f"lambda i: d.{name}[i] IS DISTINCT FROM t.{name}[p.first_segment + i])[1]"
        for name in mine
    }
    by_kind = f"if(starts_with(d.forms[{first['inputs']}], 'text'), 'text ids', 'input codes')"
    at = "' in segment ' || (p.first_segment + {} - 1)".format
    what = ", ".join(
        [
            *(
                f"CASE WHEN d.{name} <> t.{name} THEN '{name} is ' || d.{name} "
                f"|| ', the tokens say ' || t.{name} END"
                for name in ("task", "source")
            ),
            f"CASE WHEN d.forms <> {mine['forms']} THEN d.forms[{first['forms']}] || "
            f"', the tokens say ' || t.forms[p.first_segment + {first['forms']}] || "
            f"{at(first['forms'])} END",
            f"CASE WHEN d.inputs <> {mine['inputs']} THEN {by_kind} || ' differ' || "
            f"{at(first['inputs'])} END",
            f"CASE WHEN d.targets <> {mine['targets']} THEN 'target codes differ' || "
            f"{at(first['targets'])} END",
        ]
    )
    same = " AND ".join(f"d.{name} = {values}" for name, values in mine.items())
    return (
        f"SELECT d.pack, d.doc_id, concat_ws('; ', {what}) || ' (row ' || p.token_row || "
        "' of part ' || p.part || ' of ' || s.of || ')' AS what FROM packed AS d "
        "JOIN plan AS p ON p.pack = d.pack AND p.position = d.position AND p.doc_id = d.doc_id "
        "AND p.first_segment = d.first_segment AND p.num_segments = d.num_segments "
        "JOIN sources AS s ON s.component = p.component AND s.replica = p.copy % s.replicas "
        "JOIN tokens AS t ON t.component = p.component AND t.part = p.part "
        "AND t.token_row = p.token_row AND t.replica = s.replica "
        "AND t.doc_id = p.doc_id AND len(t.forms) >= p.first_segment + p.num_segments "
        f"WHERE NOT coalesce(d.task = t.task AND d.source = t.source AND {same}, false)"
    )


def _whole(slicing: Slicing) -> list[str]:
    """Nothing is left out: every document's copies are planned, and every segment of a copy."""
    cut = "piece > 0" if not slicing.split_at_images else "false"
    return [
        "SELECT NULL AS pack, u.doc_id, printf('%d copies are planned of %s, expected %s', "
        "coalesce(c.copies, 0), u.of, if(u.least = u.most, u.least::VARCHAR, "
        "u.least || ' to ' || u.most)) AS what FROM (FROM due JOIN sources USING (component) "
        "WHERE replica = 0) AS u LEFT JOIN (SELECT component, doc_id, "
        "count(DISTINCT copy) AS copies FROM plan GROUP BY ALL) AS c USING (component, doc_id) "
        "WHERE coalesce(c.copies, 0) NOT BETWEEN least AND most",
        "SELECT p.pack, p.doc_id, 'is no document of ' || s.of || ' to be packed' AS what "
        "FROM plan AS p JOIN sources AS s ON s.component = p.component AND s.replica = 0 "
        "ANTI JOIN due AS u ON u.component = p.component AND u.doc_id = p.doc_id",
        # Pieces of a copy follow on each other, and the last reaches the document's end.
        "SELECT pack, doc_id, 'piece ' || piece || ' of copy ' || copy || ' starts at segment ' "
        "|| first_segment || ', the one before ends at ' || before AS what FROM (SELECT *, "
        "lag(first_segment + num_segments) OVER (PARTITION BY component, doc_id, copy "
        "ORDER BY piece) AS before FROM plan) WHERE first_segment <> before",
        "SELECT NULL AS pack, doc_id, 'copy ' || copy || ' has ' || count(*) || ' pieces, from ' "
        "|| min(piece) || ' to ' || max(piece) AS what FROM plan GROUP BY component, doc_id, copy "
        "HAVING min(piece) <> 0 OR max(piece) <> count(*) - 1",
        "SELECT pack, doc_id, 'copy ' || copy || ' is cut, which the recipe does not allow' "
        f"AS what FROM plan WHERE {cut}",
        "SELECT NULL AS pack, p.doc_id, 'copy ' || p.copy || ' ends at segment ' || p.last "
        "|| ' of ' || len(t.forms) AS what FROM (SELECT component, part, token_row, doc_id, copy, "
        "max(first_segment + num_segments) AS last FROM plan GROUP BY ALL) AS p JOIN tokens AS t "
        "ON t.component = p.component AND t.part = p.part AND t.token_row = p.token_row "
        "AND t.replica = 0 AND t.doc_id = p.doc_id WHERE p.last < len(t.forms)",
    ]


def _starts(slicing: Slicing) -> str:
    """A copy starts at its first segment, or at its first image if it is drawn to lose its prompt.

    As `packing.slices` says it: text-to-image documents whose first image is predicted.
    """
    drawn = uniform_sql("(p.doc_id || if(p.copy > 0, '/' || p.copy, ''))", slicing.seed)
    image = "list_position(list_transform(t.forms, lambda f: contains(f, ' image, ')), true)"
    loses = (
        f"t.task = 't2i' AND {drawn} < {slicing.drop_captions!r} AND coalesce({image}, 0) > 1 "
        f"AND t.predicted[{image}] > 0"
    )
    return (
        "SELECT pack, doc_id, 'copy ' || copy || ' starts at segment ' || first_segment || "
        "', expected ' || due AS what FROM (SELECT p.pack, p.doc_id, p.copy, p.first_segment, "
        f"if({loses}, {image} - 1, 0) AS due FROM plan AS p JOIN tokens AS t "
        "ON t.component = p.component AND t.part = p.part AND t.token_row = p.token_row "
        "AND t.replica = 0 AND t.doc_id = p.doc_id WHERE p.piece = 0) WHERE first_segment <> due"
    )
