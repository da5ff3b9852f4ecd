"""Saved models, and their predictions for slides without measured expression.

============  ==================================================================================
module        what it holds
============  ==================================================================================
`keep`        what 05, 12 and 13 do to keep a model
`model`       a model on disk: written, read, its hashes checked; `card` is its page for a person
`regressors`  from tiles to expression, for every method
`domain`      the training distribution, and how far a tile or slide lies from it
`expected`    what correlation to expect of each gene, from the folds
`slides`      which slides a user means, and what is said of each
`stream`      a model applied to a whole slide, some hundred tiles at a time
`belief`      what can be believed of a prediction, in sentences
`outputs`     AnnData, tables, GeoJSON, SpatialData; `page` the maps and the page for a person
`apply`       all of it, for one slide after the other; `several` in processes of their own
============  ==================================================================================
"""
