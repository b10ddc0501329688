"""How well weights label videos whose class is known: a table of scores beside a list of truths.

The network is run by ``sqt_fast.run`` and by nothing here; only the command line imports this.
"""
