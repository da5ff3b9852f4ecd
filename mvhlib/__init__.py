"""Library of the notebook collection.

Glossary: one letter, one meaning, everywhere.

=====  ==========================================================
B      batch
V      views (crops of one image, or magnifications of one spot)
N      tokens of a vision backbone
D      width of an embedding
S      state size of a state-space layer; side of a tile where pixels are meant
L      length of a sequence that is scanned
T      tiles or spots, one row each
G      genes
K      prototypes
=====  ==========================================================

Words: a *tile* is an image crop of tissue, a *patch* only a ViT token; *spot*, *section*,
*patient*, *study* and *slide* as the field uses them. Coordinates are `(x, y)` in level-0 pixels;
`mpp` is micrometres per pixel.
"""

__version__ = "0.1.0"
