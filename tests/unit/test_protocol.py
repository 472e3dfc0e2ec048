"""Reading PostgreSQL's protocol: boundaries, names, and which SQL command a message belongs to."""

import struct

import pytest

from sa_railway.testing.protocol import Conversation, Message, command, fatal_error


def typed(kind, body=b""):
    return kind.encode() + struct.pack("!i", 4 + len(body)) + body


def startup(code, body=b""):
    return struct.pack("!ii", 8 + len(body), code) + body


STARTUP = startup(196608, b"user\0app\0\0")
SSL_REQUEST = startup(80877103)
GSSENC_REQUEST = startup(80877104)
CANCEL_REQUEST = startup(80877102, struct.pack("!ii", 4711, 42))
READY = typed("Z", b"T")


def query(sql):
    return typed("Q", sql + b"\0")


@pytest.fixture
def conversation():
    """A conversation after its startup."""
    started = Conversation()
    assert names(started.frontend(STARTUP)) == ["StartupMessage"]
    return started


def names(messages):
    return [message.name for message in messages]


def test_a_simple_query_from_startup_to_terminate():
    conversation = Conversation()
    sent = [STARTUP, typed("p", b"secret\0"), query(b"SELECT 1"), typed("X")]
    received = [
        typed("R", struct.pack("!i", 0)),
        typed("S", b"TimeZone\0UTC\0"),
        typed("K", struct.pack("!ii", 4711, 42)),
        READY,
        typed("T", b"\0\0"),
        typed("D", b"\0\0"),
        typed("C", b"SELECT 1\0"),
        READY,
    ]

    assert list(conversation.frontend(b"".join(sent))) == [
        Message("StartupMessage", sent[0]),
        Message("PasswordMessage", sent[1]),
        Message("Query", sent[2], of="SELECT"),
        Message("Terminate", sent[3]),
    ]
    assert list(conversation.backend(b"".join(received))) == [
        Message("Authentication", received[0]),
        Message("ParameterStatus", received[1]),
        Message("BackendKeyData", received[2]),
        Message("ReadyForQuery", received[3]),
        Message("RowDescription", received[4]),
        Message("DataRow", received[5]),
        Message("CommandComplete", received[6], of="SELECT"),
        Message("ReadyForQuery", received[7], of="SELECT"),
    ]


@pytest.mark.parametrize("size", range(1, 40))
def test_messages_come_out_whole_however_the_bytes_are_cut_up(size):
    conversation = Conversation()
    sent = [SSL_REQUEST, GSSENC_REQUEST, STARTUP, query(b"COMMIT"), typed("S"), typed("X")]
    data = b"".join(sent)
    messages: list[Message] = []
    for start in range(0, len(data), size):
        if len(messages) in (1, 2):  # the server refuses both kinds of encryption
            list(conversation.backend(b"N"))
        messages += conversation.frontend(data[start : start + size])

    assert [message.data for message in messages] == sent
    assert messages[3].of == "COMMIT"


def test_every_message_has_the_name_that_the_documentation_gives_it(conversation):
    frontend = b"".join(typed(kind) for kind in "BCDEFHPQSXcdfp")
    backend = b"".join(typed(kind) for kind in "123ACDEGHIKNRSTVWZcdnstv")

    assert " ".join(names(conversation.frontend(frontend))) == (
        "Bind Close Describe Execute FunctionCall Flush Parse Query Sync Terminate CopyDone "
        "CopyData CopyFail PasswordMessage"
    )
    assert " ".join(names(conversation.backend(backend))) == (
        "ParseComplete BindComplete CloseComplete NotificationResponse CommandComplete DataRow "
        "ErrorResponse CopyInResponse CopyOutResponse EmptyQueryResponse BackendKeyData "
        "NoticeResponse Authentication ParameterStatus RowDescription FunctionCallResponse "
        "CopyBothResponse ReadyForQuery CopyDone CopyData NoData PortalSuspended "
        "ParameterDescription NegotiateProtocolVersion"
    )
    assert not conversation.opaque


def test_an_execute_runs_the_command_that_was_parsed_and_bound(conversation):
    data = (
        typed("P", b"one\0COMMIT\0\0\0")
        + typed("P", b"\0INSERT INTO t VALUES (1)\0\0\0")
        + typed("B", b"door\0one\0\0\0\0\0\0\0")
        + typed("B", b"\0\0\0\0\0\0\0\0")
        + typed("D", b"Pdoor\0")
        + typed("E", b"door\0\0\0\0\0")
        + typed("E", b"\0\0\0\0\0")
        + typed("S")
    )

    messages = list(conversation.frontend(data))

    assert [(message.name, message.of, message.runs) for message in messages] == [
        ("Parse", "COMMIT", ""),
        ("Parse", "INSERT", ""),
        ("Bind", "COMMIT", ""),
        ("Bind", "INSERT", ""),
        ("Describe", "", ""),
        ("Execute", "COMMIT", "COMMIT"),
        ("Execute", "INSERT", "INSERT"),
        ("Sync", "", ""),
    ]


def test_a_statement_that_was_prepared_before_is_known_later(conversation):
    list(conversation.frontend(typed("P", b"s1\0UPDATE t SET a = 1\0\0\0")))

    bind, execute = conversation.frontend(
        typed("B", b"\0s1\0\0\0\0\0\0\0") + typed("E", b"\0\0\0\0\0")
    )

    assert (bind.of, execute.runs) == ("UPDATE", "UPDATE")


def test_only_the_ready_for_query_right_after_a_command_belongs_to_it(conversation):
    messages = conversation.backend(typed("C", b"COMMIT\0") + READY + READY)

    assert [message.of for message in messages] == ["COMMIT", "COMMIT", ""]


def test_an_error_belongs_to_its_sqlstate(conversation):
    (error,) = conversation.backend(fatal_error("57P03", "the database system is starting up"))

    assert error == Message(
        "ErrorResponse",
        b"E\0\0\0\x3eSFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0",
        of="57P03",
    )


@pytest.mark.parametrize("request_", [SSL_REQUEST, GSSENC_REQUEST])
@pytest.mark.parametrize("agreed", [b"S", b"G", b"E"])
def test_once_encryption_is_agreed_bytes_pass_as_they_are(request_, agreed):
    conversation = Conversation()
    list(conversation.frontend(request_))

    assert list(conversation.backend(agreed + b"hello")) == [
        Message("", agreed),
        Message("", b"hello"),
    ]
    assert conversation.opaque
    assert list(conversation.frontend(query(b"COMMIT"))) == [Message("", query(b"COMMIT"))]
    assert list(conversation.backend(b"Z")) == [Message("", b"Z")]


def test_after_encryption_is_refused_messages_are_read():
    conversation = Conversation()
    assert names(conversation.frontend(SSL_REQUEST)) == ["SSLRequest"]
    assert list(conversation.backend(b"N")) == [Message("", b"N")]
    assert names(conversation.frontend(GSSENC_REQUEST)) == ["GSSENCRequest"]
    assert list(conversation.backend(b"N")) == [Message("", b"N")]
    assert names(conversation.frontend(STARTUP)) == ["StartupMessage"]
    assert names(conversation.backend(READY)) == ["ReadyForQuery"]


def test_a_cancel_request_is_named():
    conversation = Conversation()

    assert list(conversation.frontend(CANCEL_REQUEST)) == [Message("CancelRequest", CANCEL_REQUEST)]


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00",  # TLS without asking
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack("!ii", 7, 196608),
    ],
)
def test_what_does_not_start_like_postgresql_passes_as_it_is(data):
    conversation = Conversation()

    assert list(conversation.frontend(data)) == [Message("", data)]
    assert conversation.opaque


@pytest.mark.parametrize("data", [b"\0\0\0\0\0", b"Q\0\0\0\3", b"Q\xff\xff\xff\xff"])
def test_what_is_no_message_passes_as_it_is(conversation, data):
    assert list(conversation.frontend(data)) == [Message("", data)]
    assert list(conversation.backend(b"anything")) == [Message("", b"anything")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"COMMIT\0", "COMMIT"),
        (b"commit;\0", "COMMIT"),
        (b"COMMIT; BEGIN\0", "COMMIT"),
        (b" \n\tCommit Work\0", "COMMIT"),
        (b"END\0", "COMMIT"),
        (b"/* trace='1' */ COMMIT /* end */\0", "COMMIT"),
        (b"-- why\n;COMMIT AND CHAIN\0", "COMMIT"),
        (b"COMMIT PREPARED 'a'\0", "COMMIT PREPARED"),
        (b"COMMIT; PREPARE a AS SELECT 1\0", "COMMIT"),
        (b"ROLLBACK\0", "ROLLBACK"),
        (b"abort\0", "ROLLBACK"),
        (b"ROLLBACK TO SAVEPOINT a\0", "ROLLBACK TO"),
        (b"ROLLBACK  WORK TO a\0", "ROLLBACK TO"),
        (b"ABORT TRANSACTION TO a\0", "ROLLBACK TO"),
        (b"ROLLBACK PREPARED 'a'\0", "ROLLBACK PREPARED"),
        (b"PREPARE TRANSACTION 'a'\0", "PREPARE TRANSACTION"),
        (b"PREPARE a AS SELECT 1\0", "PREPARE"),
        (b"BEGIN ISOLATION LEVEL SERIALIZABLE\0", "BEGIN"),
        (b"START TRANSACTION READ ONLY\0", "BEGIN"),
        (b"START_REPLICATION 0/0\0", "START_REPLICATION"),
        (b"(SELECT 1)\0", "SELECT"),
        (b"INSERT 0 1\0", "INSERT"),
        (b"CREATE TABLE\0", "CREATE"),
        (b"SELECT 'COMMIT'\0", "SELECT"),
        (b"'COMMIT'\0", ""),
        (b"/* never closed COMMIT\0", ""),
        (b"\0", ""),
        (b"", ""),
    ],
)
def test_the_command_of_a_statement_or_tag(text, expected):
    assert command(text) == expected
