"""The words that may stand before a parenthesis in a statement that only reads."""

from __future__ import annotations

# What stands before a parenthesis and calls nothing that can be the application's, as nothing else
# can be called by an unquoted reserved word.
GRAMMAR = frozenset(
    # reserved words
    "all and any array as asc case cast desc distinct do else except for from group having in "
    "intersect lateral limit not offset on only or order returning select some symmetric then to "
    "union using when where window with "
    # those that are functions or types by the grammar
    "between bit char character coalesce decimal exists extract float greatest grouping interval "
    "least nullif numeric overlay position precision row substring time timestamp trim values "
    "varchar".split()
)
# Functions of the server that write nothing. An application may have one of the same name for other
# types of arguments: where it matters, the server is asked whether it has.
FUNCTIONS = frozenset(
    # types that are functions, too
    "bpchar timestamptz varbit "
    # aggregates and window functions
    "array_agg avg bool_and bool_or count cume_dist dense_rank every first_value json_agg "
    "json_object_agg jsonb_agg jsonb_object_agg lag last_value lead max min mode nth_value "
    "ntile percent_rank percentile_cont percentile_disc rank row_number stddev string_agg sum "
    "variance "
    # scalars
    "abs age array_length array_position array_to_string btrim cardinality ceil ceiling "
    "char_length character_length clock_timestamp concat concat_ws current_database "
    "current_schema current_setting date date_bin date_part date_trunc div exp floor format "
    "format_type gen_random_uuid generate_series generate_subscripts initcap "
    "json_array_elements json_build_object json_extract_path_text jsonb_array_elements "
    "jsonb_array_length jsonb_build_array jsonb_build_object jsonb_extract_path "
    "jsonb_extract_path_text jsonb_path_exists jsonb_path_query jsonb_typeof justify_interval "
    "left length like ln lower lpad ltrim make_date make_interval make_timestamp md5 mod "
    "now num_nonnulls num_nulls obj_description octet_length overlaps pg_backend_pid "
    "pg_collation_is_visible pg_get_constraintdef pg_get_expr pg_get_indexdef "
    "pg_get_serial_sequence pg_get_viewdef pg_is_in_recovery pg_table_is_visible "
    "pg_type_is_visible plainto_tsquery power quote_ident quote_literal random "
    "regexp_match regexp_matches regexp_replace repeat replace reverse right round row_to_json "
    "rpad rtrim sign split_part sqrt starts_with statement_timestamp string_to_array "
    "strpos substr timezone to_char to_date to_json to_jsonb to_number to_timestamp "
    "to_tsquery to_tsvector transaction_timestamp translate trunc ts_rank ts_rank_cd "
    "unnest upper websearch_to_tsquery width_bucket".split()
)
HARMLESS = GRAMMAR | FUNCTIONS

# Words that a function may have for its name, and what shows, right before them, that it is none.
HARMLESS_AFTER = {
    "by": frozenset(["group", "order", "partition"]),
    "filter": frozenset([")"]),
    "first": frozenset(["fetch"]),
    "ilike": frozenset([")", '"']),
    "join": frozenset([")", '"', *"cross full inner left natural outer right".split()]),
    "next": frozenset(["fetch"]),
    "over": frozenset([")"]),
    "sets": frozenset(["grouping"]),
    "varying": frozenset(["bit", "char", "character"]),
}
