"""Several runs that are compared with one another: what a study is, its runs, its rows, its report."""
