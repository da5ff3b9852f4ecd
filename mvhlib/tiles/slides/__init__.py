"""Read pixels of an image, plain or whole-slide, by rectangles in level-0 coordinates.

One surface for three kinds of source: plain images (Pillow), pyramids such as ``.svs`` (openslide,
an extra) and arrays in memory. Whatever lies outside the image comes back white and is counted,
so that a tile at a corner is padded but never silently so.

Resampling: a triangle filter widened to the reduction (antialiased, mean-preserving, weights never
negative, so no ringing at nuclear borders) when pixels get fewer, bicubic when they get more.
"""

from mvhlib.tiles.slides.formats import TIFF, WHOLE_SLIDE
from mvhlib.tiles.slides.slide import BLACK, Slide, open_slide

__all__ = ["BLACK", "Slide", "TIFF", "WHOLE_SLIDE", "open_slide"]
