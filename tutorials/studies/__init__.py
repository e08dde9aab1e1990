"""The experiments of the R2DN paper (arXiv 2504.01250), reproduced and extended: one module a study, each a command."""
