"""DINOv2 self-supervision of one backbone, from a laptop to a cluster.

`augment`     multi-crop views as batched tensor operations
`masking`     blocks of patches that the student does not see
`heads`       projection to prototypes
`losses`      DINO with Sinkhorn-Knopp, iBOT, KoLeo
`schedules`   what changes over the steps
`model`       student and teacher
`monitors`    effective rank, time steps and poles
`config`      every setting, as a flat YAML file holds it
`data`        tiles from h5 files, folders of images, whole slides
`watch`       what notebook 03 shows
`pretrain`    the loop, and the command ``python -m mvhlib.dino.pretrain FILE.yaml [key=value ...]``

Needs torch, numpy, h5py, safetensors and PyYAML, nothing heavier. Oquab et al., DINOv2, 2023.
"""
