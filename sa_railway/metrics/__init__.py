"""What an engine has done, in numbers.

``definitions`` names each number once. ``collect`` counts, in the ``counters`` of each engine; they
lie in ``shared_memory`` where several processes answer as one. ``snapshot`` reads them, and
``prometheus`` shows them to a server of that kind.
"""
