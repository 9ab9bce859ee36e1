"""Human judgement of two models: a blind study of pairs, its page, its votes and its report."""
