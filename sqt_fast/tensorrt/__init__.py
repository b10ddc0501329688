"""TensorRT: engines built from the network, kept, checked, and run."""
