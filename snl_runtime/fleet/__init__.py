"""More than one machine: archives inspected on a cluster, one service for many lines, and two inspections compared.

The cluster is Ray's: scheduling, restarts and back pressure are its own. What is here says what a row is, when a part of the results is whole, and
what a late answer means. Nothing imports Ray or Arrow before it is used; ``pip install 'snl-edge[fleet]'`` brings both.
"""
