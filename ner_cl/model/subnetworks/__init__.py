"""Sub-networks, one per step, that later steps cannot change; importing this registers the built-in kinds."""

from ner_cl.model.subnetworks.base import SubnetworkOptions, Subnetworks
from ner_cl.model.subnetworks.hat import Hat
from ner_cl.model.subnetworks.modules import Modules
from ner_cl.model.subnetworks.packnet import PackNet

__all__ = ["Hat", "Modules", "PackNet", "SubnetworkOptions", "Subnetworks"]
