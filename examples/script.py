"""Print how many rows each table of the database has.

    DATABASE_URL=postgresql://... python script.py

The profile for scripts waits a minute for a server that is starting or restarting.
"""

from sqlalchemy import func, inspect, select, table

from sa_railway import create_engine


def main() -> None:
    engine = create_engine(profile="script")
    with engine.connect() as connection:
        for name in sorted(inspect(connection).get_table_names()):
            rows = connection.scalar(select(func.count()).select_from(table(name)))
            print(f"{rows:>10}  {name}")


if __name__ == "__main__":
    main()
