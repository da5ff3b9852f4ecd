"""From features to expression: solvers, protocols (folds x method -> tidy scores), scores, maps."""
