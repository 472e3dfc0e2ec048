"""What a statement does, as far as its text proves it: the one classifier of what writes.

A transaction that provably only reads has nothing to lose, so it needs no ticket. In doubt a
statement writes: being wrong costs a round trip, and the other mistake would lose a COMMIT.

What a name stands for is not in the text. A view, an operator, a cast or a column that hides a
function is taken for what it looks like.
"""

from __future__ import annotations

import enum
import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from sa_railway.commit.harmless import FUNCTIONS, HARMLESS, HARMLESS_AFTER


class Writes(enum.IntEnum):
    """Whether a statement changes what others can see."""

    NO = 0
    MAYBE = 1
    YES = 2


class Effects(NamedTuple):
    """What a statement does.

    Attributes:
        writes: NO only if the text proves it.
        keeps_session: whether it provably leaves the session as it was: no setting, no role, no
            lock or cursor that outlives the transaction.
        by_name: whether a function is called that reads if it is the server's of that name.
    """

    writes: Writes
    keeps_session: bool
    by_name: bool = False


READS = Effects(Writes.NO, keeps_session=True)
_UNPROVED = Effects(Writes.MAYBE, keeps_session=False)

# Beyond the first length a text is remembered by its digest, beyond the second it is not looked at.
# An ORM selects a few hundred columns with 10,000 characters; megabytes are literals.
_SHORT = 4_096
_LONG = 65_536


def effects_of(statement: object) -> Effects:
    """Return what executing *statement* does; linear in its length, and mostly remembered.

    Args:
        statement: the text that a driver is given. Anything but a text, such as bytes or a
            composed statement, proves nothing.
    """
    if type(statement) is not str:
        return _UNPROVED
    if len(statement) > _LONG:
        return _by_first_word(_tokens(statement[:_SHORT]))
    key = statement if len(statement) <= _SHORT else _digest(statement)
    effects = remembered.get(key)
    if effects is None:
        effects = _examine(statement)
        if len(remembered) >= _REMEMBERED:
            remembered.clear()
        remembered[key] = READS if effects == READS else effects
    return effects


_REMEMBERED = 1_024
# What is known of texts, by themselves or by their digests; READS is the one object of that value.
remembered: dict[str | bytes, Effects] = {}


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _by_first_word(tokens: Iterable[_Token]) -> Effects:
    """Return what is known of a statement that cannot be read to its end."""
    first = next((token.text for token in tokens if token.is_word), "")
    return _UNPROVED._replace(writes=Writes.YES if first in _WRITERS else Writes.MAYBE)


def ends_transaction(statement: object) -> str | None:
    """Return the command of *statement* that would end the transaction, such as ``"COMMIT"``."""
    if isinstance(statement, bytes):
        statement = statement.decode("utf-8", "replace")
    if not isinstance(statement, str) or not _ENDING_WORD.search(statement):
        return None
    is_body = False  # CREATE FUNCTION ... BEGIN ATOMIC ...; ...; END
    for tokens in _statements(statement):
        words = [token.text for token in tokens if token.is_word]
        if is_body:
            is_body = words[:1] != ["end"]
            continue
        match words:
            case ["commit" | "end" | "abort" as command, *_]:
                return command.upper()
            case ["rollback", *rest] if "to" not in rest:
                return "ROLLBACK"
            case ["prepare", "transaction", *_]:
                return "PREPARE TRANSACTION"
            case ["create", *_] if ("begin", "atomic") in itertools.pairwise(words):
                is_body = words[-3:] != ["begin", "atomic", "end"]
    return None


_ENDING_WORD = re.compile(r"\b(?:commit|end|abort|rollback|prepare)\b", re.IGNORECASE)


class _Token(NamedTuple):
    text: str  # a word in lower case, a sign, or what stands for a string, a name, a parameter
    is_word: bool = False


_NONE, _STRING, _NAME, _PARAMETER, _DOUBTFUL = map(_Token, ("", "'", '"', "$", "\\"))

# The signs, blanks and names are PostgreSQL's, to which every character beyond ASCII is a letter:
# Python's \s and \w would part a name where the server does not. Where a text has two readings,
# be it by the version or the settings of the server or by the driver, its token is doubtful.
_TOKEN = re.compile(
    r"""
      (?P<blank> [ \t\n\r\f\v]++ )
    | (?P<remark> --[^\n\r]*+ )
    | (?P<comment> /\* )
    | (?P<escaped> [eE]'(?: [^'\\¥] | \\. )*+' )
    | (?P<string> '[^']*+' )  # 'it''s' is two of them, which end where it ends; names likewise
    | (?P<name> "[^"]*+" )
    | (?P<dollars> \$(?P<tag>(?:[a-zA-Z_\x80-\U0010ffff][\w\x80-\U0010ffff]*+)?)\$
                   .*? \$(?P=tag)\$ )
    | (?P<parameter> \$[0-9]++ )
    | (?P<placeholder> %(?:\((?: [\w\x80-\U0010ffff .:] | -(?!-) )*+\))?+[sbt]
                       (?![\w$\x80-\U0010ffff]) )
    | (?P<word> [a-zA-Z_\x80-\U0010ffff][\w$\x80-\U0010ffff]*+ )
    | (?P<number> [0-9]++(?:\.[0-9]*+)?+(?:[eE][+-]?[0-9]++)?+(?![\w\x80-\U0010ffff]) )
    | (?P<sign> %% | %(?![a-zA-Z_\x80-\U0010ffff(]) | [-+*/<>=~!@\#^&|`?.,;:()\[\]] )
    | (?P<doubtful> % | [0-9]++ )  # of "%sinto" and "1into", which can be two words
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT = re.compile(r"/\*|\*/")
# The token of each kind. A blank has none, and a word has its text.
_KINDS: dict[str, _Token | None] = {
    **dict.fromkeys(["blank", "comment", "remark"], _NONE),
    **dict.fromkeys(["dollars", "escaped", "string"], _STRING),
    **dict.fromkeys(["number", "parameter", "placeholder"], _PARAMETER),
    **dict.fromkeys(["sign", "word"], None),
    "doubtful": _DOUBTFUL,
    "name": _NAME,
}

# A placeholder in quotes or in a comment, which a driver fills in there as well.
_QUOTED_PLACEHOLDER = re.compile(r"(?<!%)(?:%%)*+%[sbt(]")

# In EUC_JP, Python writes a yen sign as a backslash.
_ESCAPE = re.compile(r"[\\¥]")


def _tokens(text: str) -> Iterator[_Token]:
    """Yield the tokens of *text*; a doubtful one ends them where it cannot be read on."""
    at = 0
    last = _NONE
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            yield _DOUBTFUL
            return
        kind, start, at = str(found.lastgroup), at, found.end()
        if kind == "comment":
            end = _end_of_comment(text, at)
            if end is None:
                yield _DOUBTFUL
                return
            at = end
        if kind not in ("word", "sign") and _has_two_readings(kind, last, text, start, at):
            yield _DOUBTFUL
        token = _KINDS[kind]
        if token is None:
            # Python has letters beyond ASCII whose small letter is within it, as has the Kelvin.
            lower = found[0].lower() if found[0].isascii() else found[0]
            token = _Token(lower, is_word=kind == "word")
        if token is not _NONE:
            yield token
            last = token


def _has_two_readings(kind: str, last: _Token, text: str, start: int, end: int) -> bool:
    """Return whether a server or a driver may take what *text* has there for something else."""
    if kind == "placeholder":
        return last is _STRING  # which the value's own constant might go on with
    if kind == "string" and _ESCAPE.search(text, start, end):
        return True  # where it ends depends on standard_conforming_strings
    return bool(_QUOTED_PLACEHOLDER.search(text, start, end))


def _end_of_comment(text: str, at: int) -> int | None:
    """Return where the comment ends that is open before *at*; PostgreSQL's may be nested."""
    depth = 1
    for found in _COMMENT.finditer(text, at):
        depth += 1 if found[0] == "/*" else -1
        if depth == 0:
            return found.end()
    return None


def _statements(text: str) -> Iterator[list[_Token]]:
    """Yield the tokens of each statement in *text*."""
    tokens: list[_Token] = []
    for token in _tokens(text):
        if token.text == ";":
            if tokens:
                yield tokens
            tokens = []
        else:
            tokens.append(token)
    if tokens:
        yield tokens


_READERS = frozenset(
    "close declare fetch move release rollback savepoint select set show table values with".split()
)
_WRITERS = frozenset(
    "alter call comment copy create delete do drop grant import insert merge notify reassign "
    "refresh reindex replace revoke security truncate update".split()
)
_CHANGES = frozenset("delete insert merge update".split())
# of a transaction, or of nothing at all; SET without one of these lasts as long as the session
_SET_LOCALLY = frozenset("constraints local transaction".split())


def _examine(text: str) -> Effects:
    """Join what the statements of *text* do; more than one of them prove nothing together."""
    statements = list(_statements(text))
    if not statements:
        return READS  # an empty text, as some drivers ping with
    if any(_DOUBTFUL in tokens for tokens in statements):
        return _by_first_word(statements[0])
    found = [_examine_one(tokens) for tokens in statements]
    if len(found) == 1:
        return found[0]
    return _UNPROVED._replace(writes=max(Writes.MAYBE, *(effects.writes for effects in found)))


def _examine_one(tokens: list[_Token]) -> Effects:
    texts = [token.text for token in tokens]
    first, second, third = [*(text for text in texts if text != "("), "", "", ""][:3]
    is_harmless = all(
        _is_harmless(tokens, at) for at, token in enumerate(tokens) if token.text == "("
    )
    if first in _WRITERS:
        is_plain = first in _CHANGES or first in ("copy", "notify")
        return Effects(Writes.YES, keeps_session=is_plain and is_harmless)
    if first == "set":
        # SET local.timeout, in contrast, is a setting of the session
        is_local = second in _SET_LOCALLY and third not in (".", "=", "to")
        return Effects(Writes.NO, keeps_session=is_local)
    if first == "declare" and "hold" in texts:
        return _UNPROVED
    if first not in _READERS or (first == "rollback" and "to" not in texts):
        return _UNPROVED
    if _changes_data(tokens):
        # SELECT INTO may make a temporary table
        return Effects(Writes.YES, keeps_session=is_harmless and "into" not in texts)
    if not is_harmless:
        return _UNPROVED
    pairs = itertools.pairwise(tokens)
    by_name = any(name.text in FUNCTIONS and token.text == "(" for name, token in pairs)
    return READS._replace(by_name=by_name)


def _changes_data(tokens: list[_Token]) -> bool:
    """Return whether a query has a part that writes: a CTE that changes rows, or SELECT INTO."""
    words = {token.text for token in tokens if token.is_word}
    if "into" in words:
        return True
    if "with" not in words:
        return False  # where these words are but names
    # FOR UPDATE and FOR NO KEY UPDATE lock rows, which ends with the transaction
    return any(
        token.is_word
        and token.text in _CHANGES
        and not (token.text == "update" and previous.text in ("for", "key"))
        for previous, token in itertools.pairwise([_NONE, *tokens])
    )


def _is_harmless(tokens: list[_Token], at: int) -> bool:
    """Return whether the parenthesis at *at* calls nothing, or a function that only reads."""
    name, second, third = ([_NONE] * 3 + tokens[max(0, at - 3) : at])[:-4:-1]
    if not name.is_word:
        # the string is that of U&"name" UESCAPE '!'
        return name not in (_NAME, _STRING, _PARAMETER) or _is_table(tokens, at)
    if second.text == "." and third != _Token("pg_catalog", is_word=True):
        return _is_table(tokens, at)
    if name.text in HARMLESS or _is_table(tokens, at):
        return True
    if tokens[at + 1 : at + 2] == [_Token("select", is_word=True)]:
        return True  # a subquery, which is an argument only in parentheses
    if name.text == "conflict":
        return second.text == "on" and tokens[0].text == "insert"
    if second.text in HARMLESS_AFTER.get(name.text, ()):
        return True
    # t.name ILIKE (...), FROM t JOIN (...)
    is_operand = (
        second.is_word and second.text not in HARMLESS and third.text in (".", "as", "from")
    )
    return is_operand and name.text in ("ilike", "join")


def _is_table(tokens: list[_Token], at: int) -> bool:
    """Return whether *at* comes right after the table of an INSERT, or at the start of a COPY."""
    while at >= 2 and (tokens[at - 1].is_word or tokens[at - 1] is _NAME):
        at -= 2
        if tokens[at].text != ".":
            return tokens[at].text == "into" or (at == 0 and tokens[at].text == "copy")
    return False
