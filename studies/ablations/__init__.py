"""The paper's ablations: small models, trained and scored under equal conditions."""
