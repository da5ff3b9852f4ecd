"""What frequencies state-space layers, blocks and whole encoders pass, in theory and in a model.

`theory`   closed forms and bounds of poles, per unit of time and per token
`layers`   the poles and time steps of a model, read while it sees images
`tokens`   two-dimensional spectra of token maps; what a block does to a small wave
`noise`    noise in one band added to tiles: what moves the embedding

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
from mvhlib.frequency.noise import band_noise, octaves, own_contrast, sensitivity
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
from mvhlib.frequency.tokens import (
    block_response,
    high_minus_low,
    map_power,
    patch_positions,
    radial_amplitude,
    token_spectra,
    token_streams,
    wave_gain,
)

__all__ = ["FAMILIES", "NO_CUTOFF", "Layer", "audit", "band_noise", "block_response", "cutoff",
           "energy_share", "families", "half_life", "high_minus_low", "histogram",
           "histogram_table", "map_power", "mean_density", "mean_energy_share", "mode_variation",
           "mode_variation_bounds", "multiplier", "nyquist_to_dc", "octaves", "own_contrast",
           "patch_positions", "published_complex", "published_real", "radial_amplitude",
           "sensitivity", "spectrum", "token_cutoff", "token_response", "token_spectra",
           "token_streams", "transfer", "variation", "variation_share", "wave_gain",
           "with_conjugates"]
