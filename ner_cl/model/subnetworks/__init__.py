"""Sub-networks, one a step, that later steps cannot change: importing this registers the built-in kinds."""

from ner_cl.model.subnetworks.base import SubnetworkOptions, Subnetworks
from ner_cl.model.subnetworks.hat import Hat
from ner_cl.model.subnetworks.modules import Modules

__all__ = ["Hat", "Modules", "SubnetworkOptions", "Subnetworks"]
