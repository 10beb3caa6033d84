"""What ``nextscale verify`` asks of a plan by itself, and of the index: queries for DuckDB.

Over the views of `pipelines.verify_joins`, each giving damages as (pack, doc_id, what).
"""

from collections.abc import Mapping
from typing import Any

from infra.catalog import literal
from packing.packs import Facts
from pipelines.pack_phase import PackPhase
from pipelines.replicas import COUNTS

BUDGET_TOLERANCE = 1e-8  # of a pack's cost, see `packing.plan.Plan`


def plan_alone(facts: Facts) -> list[str]:
    """What no plan may say, whatever there is to pack."""
    cap = facts.token_cap
    budget = "'infinity'::DOUBLE" if facts.budget is None else f"{facts.budget!r}::DOUBLE"
    copy = "'copy ' || copy || if(piece > 0, ', piece ' || piece, '')"
    return [
        f"SELECT min(pack) AS pack, doc_id, {copy} || ' stands ' || count(*) || ' times in the "
        "plan' AS what FROM plan GROUP BY doc_id, copy, piece HAVING count(*) > 1",
        "SELECT pack, NULL AS doc_id, 'its positions in the plan are not 0 to ' || count(*) - 1 "
        "AS what FROM plan WHERE pack IS NOT NULL GROUP BY pack HAVING min(position) <> 0 "
        "OR max(position) <> count(*) - 1 OR count(DISTINCT position) <> count(*) "
        "OR count(position) <> count(*)",
        "SELECT NULL AS pack, doc_id, if(reason IS NULL, 'is in no pack, without a reason', "
        "'is in a pack and rejected (' || reason || ')') AS what, pack AS at FROM plan "
        "WHERE (pack IS NULL) = (reason IS NULL)",
        "SELECT NULL AS pack, doc_id, CASE reason "
        f"WHEN 'over_token_cap' THEN printf('is rejected as over_token_cap, but its %d tokens are "
        f"within the cap of {cap}', num_tokens) WHEN 'over_budget' THEN printf('is rejected as "
        f"over_budget, but its cost of %.12g is within the budget of %.12g', cost, {budget}) "
        "ELSE 'is rejected for a reason that there is not: ' || reason END AS what FROM plan "
        f"WHERE reason IS NOT NULL AND NOT coalesce((reason = 'over_token_cap' "
        f"AND num_tokens > {cap}) OR (reason = 'over_budget' AND cost > {budget}), false)",
        f"SELECT pack, NULL AS doc_id, printf('the plan gives it %d tokens, the cap is {cap}', "
        "sum(num_tokens)::BIGINT) AS what FROM plan WHERE pack IS NOT NULL GROUP BY pack "
        f"HAVING sum(num_tokens) > {cap}",
        "SELECT pack, NULL AS doc_id, printf('the plan gives it a cost of %.12g, the budget is "
        f"%.12g', sum(cost), {budget}) AS what FROM plan WHERE pack IS NOT NULL GROUP BY pack "
        f"HAVING sum(cost) > {budget} * (1 + {BUDGET_TOLERANCE})",
    ]


def index() -> list[str]:
    """The index by itself, and against the sums of the plan."""
    sums = ", ".join(f"sum({name})::BIGINT AS {name}" for name in COUNTS)
    same = [("num_documents", "documents"), *((name, name) for name in COUNTS)]
    differs = differences([(name, f"s.{of}", f"p.{name}") for name, of in same], "the index says")
    return [
        "SELECT pack, NULL AS doc_id, 'stands ' || count(*) || ' times in the index' AS what "
        "FROM packs GROUP BY pack HAVING count(*) > 1",
        "SELECT pack, NULL AS doc_id, 'is in no place of the global order: there are ' || n "
        "|| ' packs' AS what FROM packs, (SELECT count(*) AS n FROM packs) "
        "WHERE pack < 0 OR pack >= n",
        # Shards follow on each other, and the packs of a shard in the order of its bytes.
        "SELECT first AS pack, NULL AS doc_id, 'begins ' || shard || ', the shard before begins ' "
        "|| 'with pack ' || before AS what FROM (SELECT shard, min(pack) AS first, lag(min(pack)) "
        "OVER (ORDER BY length(shard), shard) AS before FROM packs GROUP BY shard) "
        "WHERE first < before",
        "SELECT pack, NULL AS doc_id, 'stands after pack ' || before || ' in its shard' AS what "
        'FROM (SELECT pack, lag(pack) OVER (PARTITION BY shard ORDER BY "offset") AS before '
        "FROM packs) WHERE pack <> before + 1",
        "SELECT coalesce(s.pack, p.pack) AS pack, NULL AS doc_id, "
        "CASE WHEN p.pack IS NULL THEN 'is in the plan and not in the index' "
        "WHEN s.pack IS NULL THEN 'is in the index and not in the plan' "
        f"ELSE 'by the plan, ' || {differs} END AS what FROM (SELECT pack, count(*) AS documents, "
        f"{sums} FROM plan WHERE pack IS NOT NULL GROUP BY pack) AS s "
        f"FULL JOIN packs AS p ON p.pack = s.pack WHERE s.pack IS NULL OR p.pack IS NULL "
        f"OR {differs} <> ''",
    ]


def recorded(told: Mapping[str, Any]) -> list[str]:
    """What the record of the packs says of them, against the plan."""
    rows = ", ".join(f"({n}, {one['num_tokens']})" for n, one in enumerate(told["components"]))
    return [
        "SELECT NULL AS pack, NULL AS doc_id, printf('the plan has %d packs, the record says %d', "
        f"n, {told['num_packs']}) AS what FROM (SELECT count(DISTINCT pack) AS n FROM plan) "
        f"WHERE n <> {told['num_packs']}",
        "SELECT NULL AS pack, NULL AS doc_id, printf('component %d has %d tokens in packs, the "
        "record says %d', q.component, coalesce(has, 0), q.due) AS what FROM (VALUES "
        f"{rows}) AS q(component, due) LEFT JOIN (SELECT component, sum(num_tokens)::BIGINT AS has "
        "FROM plan WHERE pack IS NOT NULL GROUP BY component) AS p ON p.component = q.component "
        "WHERE coalesce(has, 0) <> q.due",
    ]


def quotas(phase: PackPhase) -> list[str]:
    """Of every component its share of the tokens, to a document of each; in all what was asked."""
    shares, wanted = [one.share for one in phase.components], phase.num_tokens
    if len(shares) == 1 and wanted is None:
        return []
    rows = ", ".join(f"({n}, {s / sum(shares)!r}::DOUBLE)" for n, s in enumerate(shares))
    packed = (
        "SELECT component, sum(num_tokens)::BIGINT AS has, max(num_tokens) AS most FROM plan "
        "WHERE pack IS NOT NULL GROUP BY component"
    )
    queries = [
        "SELECT NULL AS pack, NULL AS doc_id, printf('%s has %d tokens of %d, its share is %.4f', "
        f"s.of, coalesce(has, 0), total, q.share) AS what FROM (VALUES {rows}) AS q(component, "
        "share) JOIN sources AS s ON s.component = q.component AND s.replica = 0 "
        f"LEFT JOIN ({packed}) AS p ON p.component = q.component, (SELECT sum(has)::BIGINT "
        f"AS total, max(most) * count(*) AS off FROM ({packed})) "
        "WHERE abs(coalesce(has, 0) - q.share * total) > off"
    ]
    if wanted is not None:
        queries.append(
            "SELECT NULL AS pack, NULL AS doc_id, printf('the packs have %d tokens, asked for are "
            f"{wanted}', total) AS what FROM (SELECT coalesce(sum(num_tokens), 0)::BIGINT AS total "
            "FROM plan WHERE pack IS NOT NULL) "
            # Later epochs lose other captions than the first, and may hold a little less.
            f"WHERE total < {wanted - len(shares)} AND (SELECT max(epoch) FROM plan) = 0"
        )
    return queries


def differences(columns: list[tuple[str, str, str]], says: str) -> str:
    """SQL: ``num_loss is 5, the plan says 6; …`` for what differs of (name, ours, theirs)."""
    parts = [
        f"CASE WHEN {ours} IS DISTINCT FROM {theirs} THEN {literal(f'{name} is ')} || "
        f"coalesce({ours}::VARCHAR, 'null') || {literal(f', {says} ')} || "
        f"coalesce({theirs}::VARCHAR, 'null') END"
        for name, ours, theirs in columns
    ]
    return f"concat_ws('; ', {', '.join(parts)})"
