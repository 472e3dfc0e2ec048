"""What is wrong between an application and its database, and what mends it.

``examine`` runs the ``checks`` on a ``case``; their ``findings`` are shown as ``text``, or in
colour on a ``screen``. ``explanation`` tells what is known of a finding without an examination.
"""
