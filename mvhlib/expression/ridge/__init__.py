"""Ridge regression for many folds and many penalties at once, exactly.

A ridge fit needs the rows only through their moments: `n`, the sums of x and y, X'X, X'Y and y'y.
Moments of disjoint groups of spots add up, so one pass over the data (a Gram matrix per section,
float64) is enough for every leave-group-out fold: a fold is a sum of groups, or the total less the
group left out. One eigendecomposition per fold then serves all penalties, and even the scores on
the held-out group come from that group's own moments,

.. math:: \\mathrm{cov}(\\hat y, y) = w^\\top C_{xy}, \\qquad
          \\mathrm{var}(\\hat y) = w^\\top C_{xx} w,

without predicting a spot. Standardisation of the features (`StandardScaler`) is a diagonal scaling
of the same matrix. Results equal scikit-learn's ``make_pipeline(StandardScaler(), Ridge(alpha))``.

Memory is `D^2 + D G` numbers per group and a chunk of rows, whatever the number of spots.

Products are float64 throughout. Chunks in float32 with float64 sums would halve the time of the
pass and were tried and refused: with 40,000 spots, 768 features and targets of unit noise,
predictions moved by 3e-5 for independent features, and by 7e-2 at the smallest penalty for features
of condition number 1000. A last layer norm ties the features to each other: those of this library's
backbones have 4e7 on the synthetic cohort.

Everything goes through numpy's own BLAS and LAPACK: scipy's wheel brings a second OpenBLAS, whose
threads wait in a spin while the first one's work, which made an eigendecomposition between two
matrix products two to five times slower.
"""

from mvhlib.expression.ridge.hest import hest_linear, hest_ridge
from mvhlib.expression.ridge.moments import FoldFit, GroupMoments, Moments
from mvhlib.expression.ridge.penalty import DEFAULT_ALPHAS, check_alphas, choose_alpha, inner_folds
from mvhlib.expression.ridge.probe import RidgeProbe, predict, solve

__all__ = ["DEFAULT_ALPHAS", "FoldFit", "GroupMoments", "Moments", "RidgeProbe", "check_alphas",
           "choose_alpha", "hest_linear", "hest_ridge", "inner_folds", "predict", "solve"]
