"""What frequencies state-space layers pass, in theory and as they stand in a model.

`theory`   closed forms and bounds of poles, per unit of time and per token
`layers`   the poles and time steps of a model, read while it sees images

Frequencies of tokens run along the raster order of the patches: one row of the image is one
period of theta = 2 pi / (patches per row). A low-pass in theta is no low-pass of the image.
"""

from mvhlib.frequency.layers import (
    Layer,
    audit,
    histogram,
    histogram_table,
    spectrum,
)
from mvhlib.frequency.theory import (
    FAMILIES,
    NO_CUTOFF,
    cutoff,
    energy_share,
    families,
    half_life,
    mean_density,
    mean_energy_share,
    mode_variation,
    mode_variation_bounds,
    multiplier,
    nyquist_to_dc,
    published_complex,
    published_real,
    token_cutoff,
    token_response,
    transfer,
    variation,
    variation_share,
    with_conjugates,
)

__all__ = ["FAMILIES", "NO_CUTOFF", "Layer", "audit", "cutoff", "energy_share", "families",
           "half_life", "histogram", "histogram_table", "mean_density", "mean_energy_share",
           "mode_variation", "mode_variation_bounds", "multiplier", "nyquist_to_dc",
           "published_complex", "published_real", "spectrum", "token_cutoff", "token_response",
           "transfer", "variation", "variation_share", "with_conjugates"]
