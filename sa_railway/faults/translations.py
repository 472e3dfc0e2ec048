# ruff: noqa: E501, RUF001 - the messages stand as the catalogues have them
"""What a server says that speaks another language than English, where that is all there is.

At connect, psycopg2 and psycopg pass on what the server has said, and no SQLSTATE. PostgreSQL speaks
the language of its setting ``lc_messages``. These are the words of its own catalogues, release 15:
German, Spanish, French, Italian, Japanese, Georgian, Korean, Russian, Swedish, Ukrainian, Chinese.
A whole message must be one of them, so that no name in it decides; what is not here stays unknown.
"""

from __future__ import annotations

import functools
import re

# libpq puts it between the word for FATAL, which each language has its own of, and the message.
_SEVERITY_ENDS = ":  "

# By a message in English, as far as it is needed to know it by.
_MESSAGES: dict[str, tuple[str, ...]] = {
    'database "%s" does not exist': (
        "Datenbank »%s« existiert nicht",
        "no existe la base de datos «%s»",
        "la base de données « %s » n'existe pas",
        'il database "%s" non esiste',
        'データベース"%s"は存在しません',
        'მონაცემთა ბაზა "%s" არ არსებობს',
        '"%s" 데이터베이스 없음',
        'база данных "%s" не существует',
        'databasen "%s" existerar inte',
        'бази даних "%s" не існує',
        '数据库 "%s" 不存在',
    ),
    'role "%s" does not exist': (
        "Rolle »%s« existiert nicht",
        "no existe el rol «%s»",
        "le rôle « %s » n'existe pas",
        'il ruolo "%s" non esiste',
        'ロール"%s"は存在しません',
        'როლი არ არსებობს: "%s"',
        '"%s" 롤(role) 없음',
        'роль "%s" не существует',
        'rollen "%s" finns inte',
        'роль "%s" не існує',
        '角色 "%s" 不存在',
    ),
    'role "%s" is not permitted to log in': (
        "Rolle »%s« hat keine Berechtigung zum Einloggen",
        "al rol «%s» no se le permite conectarse",
        "le rôle « %s » n'est pas autorisé à se connecter",
        'al ruolo "%s" non è consentito effettuare il login',
        'ロール"%s"はログインが許可されません',
        "როლს შესვლის უფლება არ აქვს: %s",
        '"%s" 롤은 접속을 허용하지 않음',
        'для роли "%s" вход запрещён',
        'roll "%s" tillåts inte logga in',
        'для ролі "%s" вхід не дозволений',
        '不允许角色"%s" 进行登录',
    ),
    "password authentication failed": (
        "Passwort-Authentifizierung für Benutzer »%s« fehlgeschlagen",
        "la autentificación password falló para el usuario «%s»",
        "authentification par mot de passe échouée pour l'utilisateur  « %s »",
        'autenticazione con password fallita per l\'utente "%s"',
        'ユーザー"%s"のパスワード認証に失敗しました',
        'პაროლით ავთენტიფიკაცია მომხმარებლისთვის "%s" ვერ მოხერხდა',
        '사용자 "%s"의 password 인증을 실패했습니다',
        'пользователь "%s" не прошёл проверку подлинности (по паролю)',
        'Lösenordsautentisering misslyckades för användare "%s"',
        'користувач "%s" не пройшов автентифікацію за допомогою пароля',
        '用户 "%s" Password 认证失败',
    ),
    "no pg_hba.conf entry": (
        "kein pg_hba.conf-Eintrag für Host »%s«, Benutzer »%s«, Datenbank »%s«, %s",
        "no hay una línea en pg_hba.conf para «%s», usuario «%s», base de datos «%s», %s",
        "aucune entrée dans pg_hba.conf pour l'hôte « %s », utilisateur « %s », base de données « %s », %s",
        'nessuna voce in pg_hba.conf per l\'host "%s", utente "%s", database "%s", %s',
        'pg_hba.conf にホスト"%s"、ユーザー"%s"、データベース"%s, %s用のエントリがありません',
        'pg_hba.conf-ში ჩანაწერი ჰოსტისთვის "%s" მომხმარებელი "%s", ბაზა "%s", %s აღმოჩენილი არაა',
        '호스트 "%s", 사용자 "%s", 데이터베이스 "%s", %s 연결에 대한 설정이 pg_hba.conf 파일에 없습니다.',
        'в pg_hba.conf нет записи для компьютера "%s", пользователя "%s", базы "%s", %s',
        'ingen rad i pg_hba.conf för värd "%s", användare "%s", databas "%s", %s',
        'в pg_hba.conf немає запису для хосту "%s", користувача "%s", бази даних "%s", %s',
        '没有用于主机 "%s", 用户 "%s", 数据库 "%s", %s 的 pg_hba.conf 记录',
        '没有用于主机 "%s", 用户 "%s", 数据库 "%s" 的 pg_hba.conf 记录',
    ),
    "pg_hba.conf rejects connection": (
        "pg_hba.conf lehnt Verbindung ab für Host »%s«, Benutzer »%s«, Datenbank »%s«, %s",
        "pg_hba.conf rechaza la conexión para el servidor «%s», usuario «%s», base de datos «%s», %s",
        "pg_hba.conf rejette la connexion pour l'hôte « %s », utilisateur « %s », base de données « %s », %s",
        'pg_hba.conf rifiuta connessioni per l\'host "%s", utente "%s", database "%s", %s',
        'pg_hba.conf の設定でホスト "%s"、ユーザー "%s"、データベース "%s", %sの接続を拒否しました',
        'pg_hba.conf უარყოფს მიერთებას ჰოსტისთვის "%s", მომხმარებელი "%s", ბაზა "%s", %s',
        '호스트 "%s", 사용자 "%s", 데이터베이스 "%s",  %s 연결이 pg_hba.conf 파일 설정에 따라 거부됩니다',
        'pg_hba.conf отвергает подключение: компьютер "%s", пользователь "%s", база данных "%s", %s',
        'pg_hba.conf avvisar anslutning för värd "%s", användare "%s", databas "%s", %s',
        'pg_hba.conf відхиляє підключення для хосту "%s", користувача "%s", бази даних "%s", %s',
        'pg_hba.conf 记录拒绝来自主机"%s", 用户"%s", 数据库"%s", %s的复制连接',
        'pg_hba.conf 记录拒绝来自主机"%s", 用户"%s", 数据库"%s"的复制连接',
    ),
    "permission denied for database": (
        "keine Berechtigung für Datenbank %s",
        "keine Berechtigung für Datenbank »%s«",
        "permiso denegado a la base de datos %s",
        "permiso denegado a la base de datos «%s»",
        "droit refusé pour la base de données %s",
        "droit refusé pour la base de données « %s »",
        "permesso negato per il database %s",
        'permesso negato per il database "%s"',
        "データベース %s へのアクセスが拒否されました",
        'データベース"%s"へのアクセスが拒否されました',
        'წვდომა აკრძალულია აგრეგატზე: "%s"',
        'წვდომა აკრძალულია ბაზაზე: "%s"',
        "%s 데이터베이스 접근 권한 없음",
        '"%s" 데이터베이스 액세스 권한 없음',
        "нет доступа к базе данных %s",
        'доступ к базе "%s" запрещён',
        "rättighet saknas för databas %s",
        'rättighet saknas för databas "%s"',
        "немає доступу для бази даних %s",
        'доступ до бази даних "%s" відхилений',
        "对数据库 %s 权限不够",
        '访问数据库"%s"的权限不够',
    ),
    "database is not currently accepting connections": (
        "Datenbank »%s« akzeptiert gegenwärtig keine Verbindungen",
        "la base de datos «%s» no acepta conexiones",
        "la base de données « %s » n'accepte plus les connexions",
        'il database "%s" attualmente non accetta connessioni',
        '現在データベース"%s"は接続を受け付けません',
        'ბაზა "%s" ამჟამად მიერთებებს არ იღებს',
        '"%s" 데이터베이스는 현재 접속을 허용하지 않습니다',
        'база "%s" не принимает подключения в данный момент',
        'databasen "%s" tar för närvarande inte emot uppkopplingar',
        'база даних "%s" не приймає підключення в даний момент',
        '数据库 "%s" 当前不接受联接',
    ),
    "too many clients already": (
        "tut mir leid, schon zu viele Verbindungen",
        "lo siento, ya tenemos demasiados clientes",
        "désolé, trop de clients sont déjà connectés",
        "spiacente, troppi client già connessi",
        "現在クライアント数が多すぎます",
        "უკაცრავად, უკვე მეტისმეტად ბევრი კლიენტია",
        "최대 동시 접속자 수를 초과했습니다.",
        "извините, уже слишком много клиентов",
        "ledsen, för många klienter",
        "вибачте, вже забагато клієнтів",
        "对不起, 已经有太多的客户",
    ),
    "remaining connection slots are reserved": (
        "die verbleibenden Verbindungen sind für Superuser auf Nicht-Replikationsverbindungen reserviert",
        "las conexiones restantes están reservadas a superusuarios y no de replicación",
        "les emplacements de connexions restants sont réservés pour les connexions superutilisateur non relatif à la réplication",
        "i rimanenti slot di connessione sono riservati a connessioni di superutenti non di replica",
        "残りの接続スロットはレプリケーションユーザーではないスーパーユーザー用に予約されています",
        "남은 연결 슬롯은 non-replication 슈퍼유저 연결용으로 남겨 놓았음",
        "оставшиеся слоты подключений зарезервированы для подключений суперпользователя (не для репликации)",
        "resterande anslutningsslottar är reserverade för superuser-anslutningar utan replikering",
        "слоти підключень, які залишились, зарезервовані для підключень суперкористувача (не для реплікації)",
        "已保留的连接位置为执行非复制请求的超级用户预留",
    ),
    "too many connections for role": (
        "zu viele Verbindungen von Rolle »%s«",
        "demasiadas conexiones para el rol «%s»",
        "trop de connexions pour le rôle « %s »",
        'troppe connessioni per il ruolo "%s"',
        'ロール"%s"からの接続が多すぎます',
        'მეტისმეტად ბევრი კავშირი როლისთვის "%s"',
        '"%s" 롤의 최대 동시 접속수를 초과했습니다',
        'слишком много подключений для роли "%s"',
        'för många uppkopplingar för roll "%s"',
        'занадто багато підключень для ролі "%s"',
        '由角色"%s"发起的连接太多了',
    ),
    "too many connections for database": (
        "zu viele Verbindungen für Datenbank »%s«",
        "demasiadas conexiones para la base de datos «%s»",
        "trop de connexions pour la base de données « %s »",
        'troppe connessioni al database "%s"',
        'データベース"%s"への接続が多すぎます',
        'ძალიან ბევრი კავშირი ბაზისთვის "%s"',
        '"%s" 데이터베이스 최대 접속수를 초과했습니다',
        'слишком много подключений к БД "%s"',
        'för många uppkopplingar till databasen "%s"',
        'занадто багато підключень до бази даних "%s"',
        '到数据库 "%s"的连接太多了',
    ),
    "the database system is starting up": (
        "das Datenbanksystem startet",
        "el sistema de base de datos está iniciándose",
        "le système de bases de données se lance",
        "il database si sta avviando",
        "データベースシステムは起動処理中です",
        "მიმდინარეობს მონაცემთა ბაზის სისტემის გაშვება",
        "데이터베이스 시스템이 새로 가동 중입니다.",
        "система баз данных запускается",
        "databassystemet startar upp",
        "система бази даних запускається",
        "数据库系统启动中",
    ),
    "the database system is shutting down": (
        "das Datenbanksystem fährt herunter",
        "el sistema de base de datos está apagándose",
        "le système de base de données s'arrête",
        "il database si sta spegnendo",
        "データベースシステムはシャットダウンしています",
        "მონაცემთა ბაზის სისტემა ითიშება",
        "데이터베이스 시스템이 중지 중입니다",
        "система баз данных останавливается",
        "databassystemet stänger ner",
        "система бази даних завершує роботу",
        "数据库系统停止中",
    ),
    "the database system is in recovery mode": (
        "das Datenbanksystem ist im Wiederherstellungsmodus",
        "el sistema de base de datos está en modo de recuperación",
        "le système de bases de données est en cours de restauration",
        "il database è in modalità di ripristino",
        "データベースシステムはリカバリモードです",
        "მონაცემთა ბაზის სისტემა აღდგენის რეჟიმშია",
        "데이터베이스 시스템이 자동 복구 작업 중입니다.",
        "система баз данных в режиме восстановления",
        "databassystemet är återställningsläge",
        "система бази даних у режимі відновлення",
        "数据库系统在恢复模式中",
    ),
    "the database system is not accepting connections": (
        "das Datenbanksystem nimmt keine Verbindungen an",
        "das Datenbanksystem nimmt noch keine Verbindungen an",
        "el sistema de bases de datos no está aceptando conexiones",
        "el sistema de bases de datos aún no está aceptando conexiones",
        "le système de bases de données n'accepte pas de connexions",
        "le système de bases de données n'accepte pas encore de connexions",
        "il sistema di database non accetta connessioni",
        "il sistema di database non accetta ancora connessioni",
        "データベースシステムは接続を受け付けていません",
        "データベースシステムはまだ接続を受け付けていません",
        "მონაცემთა ბაზის სისტემა მიერთებებს არ იღებს",
        "მონაცემთა ბაზის სისტემა ჯერ მიერთებებს არ იღებს",
        "해당 데이터베이스 시스템은 접속을 허용하지 않습니다.",
        "해당 데이터베이스 시스템은 아직 접속을 허용하지 않습니다.",
        "система БД не принимает подключения",
        "система БД ещё не принимает подключения",
        "databassystemet tar inte emot anslutningar",
        "databassystemet tar ännu inte emot anslutningar",
        "система бази даних не приймає підключення",
        "система бази даних ще не приймає підключення",
    ),
}


def in_english(message: str) -> str:
    """Return *message* with what the server has said put into English, if it is known."""
    if _SEVERITY_ENDS not in message:
        return message
    for english, translations in _patterns():
        message = translations.sub(english, message)
    return message


@functools.cache
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    return [
        (english.replace("%s", ""), _pattern(translations))
        for english, translations in _MESSAGES.items()
    ]


def _pattern(translations: tuple[str, ...]) -> re.Pattern[str]:
    """Return what finds any of *translations*, where a message begins."""
    said = (re.escape(text).replace("%s", ".*") for text in translations)
    either = "|".join(said).replace(r"\ ", r"\s+")  # some catalogues break a message into lines
    return re.compile(rf"(?<={_SEVERITY_ENDS})(?:{either})$", re.MULTILINE)
