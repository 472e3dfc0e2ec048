"""The lost COMMIT: what became of a transaction whose answer never came.

The journey of a COMMIT, each step in a module:

    tracking, work   what has run on the connection; sql says of each statement whether it may write
    resolver         surrounds do_commit(): secures a proof, commits, judges an error
    status, marker   the proof: a ticket, or a row of the transaction; wire speaks to the server
    asking           after a loss: asks on new connections until there is an answer, or no time
    decision         what the answer proves; no input or output
    parting          after a COMMIT that has happened: with what the caller goes on
    ambiguity        tells retry() of errors that may hide a COMMIT
"""
