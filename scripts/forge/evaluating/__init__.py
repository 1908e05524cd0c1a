"""The evaluation before anything is exported: signals, statistics, the verdict, and what it is bound to."""
