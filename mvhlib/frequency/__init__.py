"""Frequency response of state-space layers, blocks and whole encoders, in theory and in a model.

`theory`   closed forms and bounds of poles, per unit of time and per token
`layers`   the poles and time steps of a model, read while it sees images
`tokens`   two-dimensional spectra of token maps; what a block does to a small wave
`forward`  one pass of a backbone with hooks
`noise`    noise in one band added to tiles: what moves the embedding
`draw`     curves of many encoders in one axis
`subjects` the images and the models of a run whose frequencies are read
`found`    what the tables say, in sentences
`tissue`   how fast expression and borders vary, over spots and inside tiles

Frequencies of tokens run along the raster order of the patches: one row of the image is one
period of theta = 2 pi / (patches per row). A low-pass in theta is no low-pass of the image.
"""

from mvhlib.frequency.draw import (
    FLAT,
    WHOSE,
    before_after,
    curves,
    draw_slow_and_fast,
    family_colours,
    legend,
    passes,
    tilt,
)
from mvhlib.frequency.layers import (
    PUBLISHED_MIN,
    Layer,
    audit,
    density_table,
    histogram,
    histogram_table,
    spectrum,
)
from mvhlib.frequency.noise import band_contrast, band_noise, octaves, sensitivity
from mvhlib.frequency.theory import (
    FAMILIES,
    NO_CUTOFF,
    cutoff,
    decayed,
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
from mvhlib.frequency.tissue import borders, explained, slow_and_fast
from mvhlib.frequency.tokens import (
    block_response,
    high_minus_low,
    map_power,
    patch_positions,
    radial_amplitude,
    token_spectra,
    token_streams,
    wave_gain,
    whole_waves,
)

__all__ = ["FAMILIES", "FLAT", "NO_CUTOFF", "PUBLISHED_MIN", "WHOSE", "Layer", "audit",
           "band_contrast", "band_noise", "before_after", "block_response", "borders", "curves",
           "cutoff", "decayed", "density_table", "draw_slow_and_fast", "energy_share", "explained",
           "families", "family_colours", "half_life", "high_minus_low", "histogram",
           "histogram_table", "legend", "map_power", "mean_density", "mean_energy_share",
           "mode_variation", "mode_variation_bounds", "multiplier", "nyquist_to_dc", "octaves",
           "passes", "patch_positions", "published_complex", "published_real", "radial_amplitude",
           "sensitivity", "slow_and_fast", "spectrum", "tilt", "token_cutoff", "token_response",
           "token_spectra", "token_streams", "transfer", "variation", "variation_share",
           "wave_gain", "whole_waves", "with_conjugates"]
