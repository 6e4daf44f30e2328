"""Many methods on many categories with many seeds: a plan, its runs, and the tables they give."""
