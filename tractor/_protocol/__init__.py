"""
The rules of the runtime: which message may come next, who is to blame, what is
raised.  Classes and tables without trio, clock or log; the other layers obey them.
"""
