"""What is attached to one engine, through SQLAlchemy's public hooks only.

Each behaviour has one ``listen()`` and does not know the others; ``plugin`` knows them all.
"""
