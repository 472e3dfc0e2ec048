"""Can this statement have written anything? If in doubt, yes."""

from __future__ import annotations

import functools
import re

__all__ = ["may_write"]

_SKIPPED = re.compile(
    r"""'(?:[^']|'')*'     # a string
      | "(?:[^"]|"")*"     # a quoted name
      | --[^\n]*           # comments; SQLAlchemy and sqlcommenter add them
      | /\*.*?\*/""",
    re.VERBOSE | re.DOTALL,
)
_FIRST_WORD = re.compile(r"[\s(]*([a-z]+)")
_READS = frozenset(
    {"select", "with", "values", "table", "show", "set", "savepoint", "release", "rollback"}
)
_WRITING_WORD = re.compile(r"\b(?:insert|update|delete|merge|into|call|do|execute)\b|\$\w*\$")
_LOCKING_CLAUSE = re.compile(r"\bfor\s+(?:no\s+key\s+)?update\b")
_CALLED = re.compile(r"([a-z_][a-z0-9_.]*)\s*\(")

# Words that stand before a parenthesis without calling anything, and functions of PostgreSQL that
# change nothing. Any other function may be somebody's that writes.
_HARMLESS = frozenset(
    "all and any array as asc between by case cast coalesce cross cube desc distinct else except "
    "exists extract filter from full grouping having if ilike in inner intersect is join lateral "
    "left like limit materialized natural not nulls offset on or order outer over partition "
    "recursive returning right rollup row select sets similar some then union using values when "
    "where with within "
    # types with a modifier
    "bit bpchar char character decimal float interval numeric precision time timestamp timestamptz "
    "varbit varchar varying "
    # aggregates and window functions
    "array_agg avg bool_and bool_or count cume_dist dense_rank every first_value json_agg "
    "json_object_agg jsonb_agg jsonb_object_agg lag last_value lead max min mode nth_value ntile "
    "percent_rank percentile_cont percentile_disc rank row_number stddev string_agg sum variance "
    # scalars
    "abs age array_length btrim cardinality ceil ceiling char_length clock_timestamp concat "
    "concat_ws current_database current_schema current_setting date date_bin date_part date_trunc "
    "exp floor format gen_random_uuid generate_series greatest initcap json_build_object "
    "jsonb_build_object justify_interval least left length ln log lower lpad ltrim make_date "
    "make_interval md5 mod now nullif octet_length pg_backend_pid pg_is_in_recovery position power "
    "random regexp_match regexp_replace repeat replace reverse right round row_to_json rpad rtrim "
    "sign similarity split_part sqrt statement_timestamp strpos substr substring to_char to_date "
    "to_json to_jsonb to_number to_timestamp to_tsquery to_tsvector transaction_timestamp trim "
    "trunc unnest upper version websearch_to_tsquery".split()
)


@functools.lru_cache(maxsize=1024)
def may_write(statement: str) -> bool:
    """Return whether executing *statement* may have changed data.

    False only for what provably reads: a query without a data-modifying word, which calls no
    function but those known to change nothing. Being wrong in doubt costs one round trip; a view
    or an operator whose own function writes is taken for what it looks like.
    """
    if "\\'" in statement:  # within an E'...' string this is no end, and nobody looks that closely
        return True
    # a quoted name stays a name: it may be called
    text = _SKIPPED.sub(lambda m: "quoted" if m[0][0] == '"' else " ", statement.lower())
    first = _FIRST_WORD.match(text)
    if first is None or first[1] not in _READS:
        return True
    if _WRITING_WORD.search(_LOCKING_CLAUSE.sub(" ", text)):
        return True
    return any(name not in _HARMLESS for name in _CALLED.findall(text))
