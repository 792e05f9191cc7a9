"""Speed and memory beside the parts of the hosts and of other libraries."""
