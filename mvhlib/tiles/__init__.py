"""Tiles: image crops of tissue with their size stated in micrometres.

`slides` reads pixels, `cut` turns spots or a tissue mask into tiles, `store` keeps them in h5.
Nothing here knows of expression or anndata.
"""
