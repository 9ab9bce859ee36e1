"""Clips to shards of latents, tokens and embeddings: what training at scale reads."""
