"""Human evaluation: a blind pairwise study of two models, with its page, votes and report."""
