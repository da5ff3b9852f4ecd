"""Saved models, and their predictions for slides without measured expression.

============  ==================================================================================
module        what it holds
============  ==================================================================================
`keep`        fits and saves a model, for 05, 12 and 13
`model`       a saved model: written, read, its hashes checked; `card` is its page for a reader
`regressors`  from tiles to expression, for every method
`domain`      the training distribution, and how far a tile or slide lies from it
`expected`    expected correlation of each gene, from the folds
`slides`      slides that a user names, and the stated facts about each
`stream`      a model applied to a whole slide, some hundred tiles at a time
`belief`      reliability of a prediction, in sentences
`outputs`     AnnData, tables, GeoJSON, SpatialData; `page` the maps and the page for a reader
`apply`       all of it, for one slide after the other; `several` in processes of their own
============  ==================================================================================
"""
