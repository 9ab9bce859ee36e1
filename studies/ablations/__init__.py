"""The paper's ablations: many small models, trained and scored alike, on one page."""
