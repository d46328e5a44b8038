"""What ``frameattn train`` runs: the configuration, what a step draws, the loop and its files."""

from frameattn.training.config import Config
from frameattn.training.config_io import read_config
from frameattn.training.create import create_trainer
from frameattn.training.trainer import Trainer

__all__ = ["Config", "Trainer", "create_trainer", "read_config"]
