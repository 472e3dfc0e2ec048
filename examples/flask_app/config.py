"""The settings of the application. The database is found in the environment."""

from sa_railway import database_url, engine_options


class Config:
    """Settings for production and, as without ``DATABASE_URL`` an SQLite file is used, at home."""

    SQLALCHEMY_DATABASE_URI = database_url()
    SQLALCHEMY_ENGINE_OPTIONS = engine_options()
