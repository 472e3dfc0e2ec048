"""Database connections that survive a hosted PostgreSQL. The public names, nothing else."""

__version__ = "0.1.0"
