"""What is wrong with machine, GPU, cluster, store and network, before anything starts."""
