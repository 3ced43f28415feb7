"""The libraries, one file each; `OURS` is what they are compared with."""

from experiments.bench.entry import Peer
from experiments.bench.peers import (
    cudnn,
    equinox,
    haiku,
    keras,
    linen,
    nnx,
    ours,
    products,
    pytorch,
    scan,
)

OURS = ours.OURS
PLANS = ours.PLANS
PEERS: tuple[Peer, ...] = (
    linen.PEER,
    nnx.PEER,
    equinox.PEER,
    haiku.PEER,
    keras.PEER,
    scan.PEER,
    pytorch.PEER,
    ours.PLAIN,
    ours.TWO_DEVICES,
    products.PEER,
)
GPU_PEERS: tuple[Peer, ...] = (cudnn.JAX, cudnn.TORCH)  # where JAX runs on one
