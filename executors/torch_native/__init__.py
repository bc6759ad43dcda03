"""The torch-native executor: pipelines of unequal width, sharding and tensor parallelism inside stages."""
