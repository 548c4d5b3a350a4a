"""Trains each config in turn with FSDP2 on CPU processes, which accelerate offers on accelerators only."""

import os
import sys

from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import FSDPModule

from tivtok.training import TrainConfig, leave_processes, train
from tivtok.training.trainer import Trainer

step = Trainer.step


def step_of_sharded(self, video, number):
    assert isinstance(self.model, FSDPModule) and isinstance(self.model.encoder.blocks[0], FSDPModule)
    return step(self, video, number)


Trainer.step = step_of_sharded
state = Accelerator(cpu=True, mixed_precision="no").state
PartialState().distributed_type = DistributedType.FSDP
state.fsdp_plugin = FullyShardedDataParallelPlugin(
    fsdp_version=2,
    cpu_ram_efficient_loading=False,
    auto_wrap_policy="TRANSFORMER_BASED_WRAP",
    transformer_cls_names_to_wrap=["Block"],
)
for config in sys.argv[1:]:
    train(TrainConfig.load(config))
leave_processes()
sys.stdout.flush()
os._exit(0)  # caches of torch's FSDP keep the group: its threads can abort an interpreter that ends
