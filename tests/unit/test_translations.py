"""What a server says in another language than English, at connect."""

import psycopg
import psycopg2
import pytest

from sa_railway.faults import classify, translations
from sa_railway.faults.messages import TEXTS, condition_in

AT = 'connection to server at "db.railway.internal" (10.0.0.1), port 5432 failed: '

# as servers of release 15 have said it
HEARD = [
    ("FATAL:  Datenbank »shop« existiert nicht", "3D000"),
    ("FATAL:  Passwort-Authentifizierung für Benutzer »app« fehlgeschlagen", "28P01"),
    ("FATAL:  zu viele Verbindungen für Rolle »app«", None),  # which no catalogue has
    ("FATAL:  tut mir leid, schon zu viele Verbindungen", "53300"),
    ("FATAL:  la base de données « shop » n'existe pas", "3D000"),
    (
        "FATAL:  aucune entrée dans pg_hba.conf pour l'hôte « 10.0.0.2 », utilisateur « app »,\n"
        "base de données « shop », aucun chiffrement",
        "28000",
    ),
    ("FATAL:  no existe el rol «app»", "28000"),
    ("FATAL:  el sistema de base de datos está iniciándose", "57P03"),
    ('FATALE:  autenticazione con password fallita per l\'utente "app"', "28P01"),
    ('FATAL:  データベース"shop"は存在しません', "3D000"),
    ("FATAL:  現在クライアント数が多すぎます", "53300"),
    ('ВАЖНО:  роль "app" не существует', "28000"),
    ("ВАЖНО:  система баз данных запускается", "57P03"),
    ('致命错误:  数据库 "shop" 不存在', "3D000"),
    ("致命错误:  对不起, 已经有太多的客户", "53300"),
    ('치명적오류:  "shop" 데이터베이스 없음', "3D000"),
    ('FATALT:  databasen "shop" existerar inte', "3D000"),
]


@pytest.mark.parametrize("driver", [psycopg2, psycopg])
@pytest.mark.parametrize(("text", "sqlstate"), HEARD)
def test_the_sqlstate_is_known_by_the_words_of_the_server(driver, text, sqlstate):
    fault = classify(driver.OperationalError(f"{AT}{text}\n"))

    assert fault.sqlstate == sqlstate
    if sqlstate is None:
        assert fault.kind == "connect-transient"
    else:
        in_english = type("Error", (Exception,), {"sqlstate": sqlstate})()
        assert fault == classify(in_english)


ALL = [
    (english, translated)
    for english, table in translations._MESSAGES.items()
    for translated in table
]


@pytest.mark.parametrize(("english", "translated"), ALL)
def test_a_translation_means_what_the_english_message_means(english, translated):
    condition = next(key for part, key in TEXTS if part in english.replace("%s", ""))

    assert condition_in(f"{AT}FATAL:  {translated.replace('%s', 'a name')}") == condition


def test_a_name_decides_nothing():
    # the name of a role is anybody's choice
    name = "x:  Datenbank »y« existiert nicht"

    assert condition_in(f"{AT}FATAL:  etwas mit der Rolle »{name}« ist faul") == "unreachable"
    assert condition_in(f'{AT}FATAL:  password authentication failed for user "{name}"') == "28P01"


def test_of_several_addresses_the_most_telling_answer_counts_in_any_language():
    refused = AT + "Connection refused\n\tIs the server running on that host?"
    starting = AT + "FATAL:  das Datenbanksystem startet"
    missing = AT + "FATAL:  Datenbank »shop« existiert nicht"

    assert condition_in(f"{refused}\n{missing}") == "3D000"
    assert condition_in(f"{missing}\n{starting}") == "57P03"
