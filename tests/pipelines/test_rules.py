"""Rules are data: what is no plain condition fails before work, naming rule and cause."""

import pyarrow as pa
import pytest

from infra.config import ConfigError
from pipelines.rules import Rule, check_expression, check_rule

COLUMNS = pa.schema(
    [
        ("sample_id", pa.string()),
        ("caption", pa.string()),
        ("metadata", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("clarity", pa.float32()),
        ("clipped", pa.bool_()),
        ("hash", pa.uint64()),
        ("topics", pa.list_(pa.string())),
        ("odd name", pa.float64()),
    ]
)

ATTACKS = [
    "1) ok from s; copy s to 'x'; select (1",
    "width > 1; drop table s",
    "width > 1; copy s to '/tmp/x'; select true",
    "true) or (true",
    "true from s",
    "true from read_csv('/etc/passwd')",
    "true where true",
    "true group by 1",
    "true having true",
    "true qualify true",
    "true order by 1",
    "true limit 1",
    "true using sample 10",
    "true union select false",
    "true, false",
    "true as",
    "distinct true",
    "distinct on (width) true",
    "all true",
    "with t as (select 1) select true",
    "copy s to 'x'",
    "pragma database_list",
    "attach 'x'",
    "set threads = 1",
    "install httpfs",
    "load httpfs",
    "call pragma_version()",
    "explain select 1",
    "(select true)",
    "exists (select 1)",
    "width in (select 1)",
    "width > any (select 1)",
    "(from s)",
    "(values (true))",
    "(select count(*) from read_csv('/etc/passwd')) > 0",
    "read_csv('/etc/passwd') is null",
    "read_text('/etc/passwd') is null",
    "read_blob('/etc/passwd') is null",
    "glob('/etc/*') is null",
    "query('select 1') is null",
    "query_table('s') is null",
    "pragma_version() is null",
    "duckdb_settings() is null",
    "getenv('HOME') = 'x'",
    "current_setting('threads') = 1",
    "set_config('threads', '1') is null",
    "current_user = 'x'",
    "current_database() = 'x'",
    "version() = 'x'",
    "nextval('x') = 1",
    "random() > 0.5",
    "uuid() = 'x'",
    "now() > '2020-01-01'",
    "current_timestamp is null",
    "getvariable('x') is null",
    "error('x') is null",
    "repeat('x', 1000000000) = 'x'",
    "range(1000000000) is null",
    "sum(width) > 1",
    "count(*) > 1",
    "avg(width) over () > 1",
    "row_number() over (order by width) < 10",
    "lag(width) over (order by width) < 10",
    "abs(width) over () > 1",
    "abs(distinct width) > 1",
    "abs(width) filter (where true) > 1",
    "len(list_transform(topics, x -> x)) > 0",
    "len(list_filter(topics, lambda x: true)) > 0",
    "len([x for x in topics]) > 0",
    "len([x for x in topics if x = 'a']) > 0",
    "list_reduce([1, 2], lambda a, b: a + b) = 3",
    "width > ?",
    "width > $1",
    "width > $name",
    "*",
    "columns(*) > 1",
    "columns('width') > 1",
    "s.*",
    "* exclude (width)",
    "count(columns(*)) > 0",
    "unnest(topics) = 'a'",
    "#1 > 0",
    "default",
    "main.abs(width) > 1",
    "pg_catalog.pg_get_viewdef(1) is null",
    "system.main.abs(width) > 1",
    "s.width > 1",
    "main.s.width > 1",
    "nothing > 1",
    "rowid > 1",
    "filename = 'x'",
    "width.x > 1",
    "caption collate nocase = 'x'",
    "grouping(width) = 1",
    "width > 1 /* open",
    "-- nothing",
    "",
    " ",
    ";",
    "width >",
    "'open",
    "width > 'wide'",
    "caption > 3 + topics",
    "width::nothing > 1",
    "width::mytable.x > 1",
    "caption like",
    "\0",
    "width > 1\0",
    "\ud800 = 1",
]


@pytest.mark.parametrize("expression", ATTACKS)
def test_attacks(expression: str) -> None:
    with pytest.raises(ConfigError, match="rule `mine`") as raised:
        check_rule(Rule(name="mine", keep=expression), COLUMNS)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("expression", ATTACKS)
def test_attacks_through_a_quantile(expression: str) -> None:
    with pytest.raises(ConfigError, match="rule `mine`"):
        check_rule(Rule(name="mine", top=0.5, by=expression), COLUMNS)


FORMS = ["({})", "not {}", "abs({})", "{} + 1", "case when {} then 1 end"]


@pytest.mark.parametrize("depth", [2_000, 200_000])
@pytest.mark.parametrize("form", FORMS)
def test_deep_nesting_is_refused(depth: int, form: str) -> None:
    before, after = form.split("{}")
    with pytest.raises(ConfigError, match=r"rule `deep`.*characters: write several") as raised:
        check_expression(before * depth + "clarity" + after * depth, COLUMNS, "rule `deep`")
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize("form", FORMS[:-1])
def test_deepest_nesting_that_is_read(form: str) -> None:
    before, after = form.split("{}")
    depth = 1_980 // len(before + after)
    expression = before * depth + "clarity" + after * depth
    try:
        check_expression(expression, COLUMNS, "rule `deep`")
    except ConfigError as error:
        message = str(error)
    else:
        message = "rule `deep`: fine"
    assert message.startswith("rule `deep`")


@pytest.mark.parametrize(
    ("expression", "kind"),
    [
        ("least(width, height) >= 256", "BOOLEAN"),
        ("clarity > 0.2 and not clipped", "BOOLEAN"),
        ("CLARITY > 0.2 -- sharp enough", "BOOLEAN"),
        ("/* sharp */ clarity > 0.2", "BOOLEAN"),
        ("width > 1 --", "BOOLEAN"),
        ("width between 256 and 4096", "BOOLEAN"),
        ("greatest(width, height)::double / least(width, height) < 3", "BOOLEAN"),
        ("caption is not null and length(trim(caption)) > 3", "BOOLEAN"),
        ("caption like '%cat%' or caption ilike 'DOG%'", "BOOLEAN"),
        ("regexp_matches(lower(caption), '(cat|dog)s?')", "BOOLEAN"),
        ("list_contains(topics, 'cat')", "BOOLEAN"),
        ("'cat' in topics", "BOOLEAN"),
        ("caption in ('a', 'b')", "BOOLEAN"),
        ("caption not in ('a', 'b')", "BOOLEAN"),
        ("topics[1] = 'cat'", "BOOLEAN"),
        ("coalesce(clarity, 0) > 0.1", "BOOLEAN"),
        ("case when width > height then clarity > 0.1 else clarity > 0.2 end", "BOOLEAN"),
        ("if(width > height, true, false)", "BOOLEAN"),
        ("bit_count(xor(hash, 17::ubigint)) > 3", "BOOLEAN"),
        ("json_extract_string(metadata, '$.license') = 'cc0'", "BOOLEAN"),
        ("metadata->>'license' = 'cc0'", "BOOLEAN"),
        ('"odd name" > 1', "BOOLEAN"),
        ("try_cast(caption as integer) > 3", "BOOLEAN"),
        ("clarity is distinct from 1", "BOOLEAN"),
        ("clipped", "BOOLEAN"),
        ("true", "BOOLEAN"),
        ("clarity", "FLOAT"),
        ("width * height", "INTEGER"),
        ('0.5 * clarity + 0.5 * "odd name"', "DOUBLE"),
        ("caption", "VARCHAR"),
    ],
)
def test_plain_expressions(expression: str, kind: str) -> None:
    assert check_expression(expression, COLUMNS, "rule `r`") == kind


def test_what_is_wrong_is_told_with_a_remedy() -> None:
    for keep, message in (
        ("widht > 3", "unknown column `widht`: did you mean `width`"),
        ("width + 1", "`width \\+ 1` is INTEGER, expected a condition"),
        ("sum(width) > 1", "function `sum` is not among those that rules may call: abs, "),
        ("true; select true", "more than one statement: give one condition"),
        ("(select true)", "holds a subquery"),
    ):
        with pytest.raises(ConfigError, match=f"rule `r`.*{message}"):
            check_rule(Rule(name="r", keep=keep), COLUMNS)
    with pytest.raises(ConfigError, match="`caption` is VARCHAR, expected a number"):
        check_rule(Rule(name="r", top=0.5, by="caption"), COLUMNS)
    for by in ("clarity", "width * height", "0.5 * clarity + 1", "width / 3.5"):
        check_rule(Rule(name="r", top=0.5, by=by), COLUMNS)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "r"}, "give either `keep`, or `top` and `by`"),
        ({"name": "r", "keep": "true", "top": 0.5, "by": "x"}, "give either"),
        ({"name": "r", "top": 0.5}, "give either"),
        ({"name": "r", "by": "x"}, "give either"),
        ({"name": "r", "top": 0.0, "by": "x"}, "top is 0.0"),
        ({"name": "r", "top": 1.5, "by": "x"}, "top is 1.5"),
        ({"name": "r", "top": float("nan"), "by": "x"}, "top is nan"),
        ({"name": "", "keep": "true"}, "must not be empty"),
        ({"name": "a:b", "keep": "true"}, "hold `:`"),
    ],
)
def test_impossible_rules(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rule(**values)  # type: ignore[arg-type]
