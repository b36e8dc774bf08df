"""The paper's theory (arXiv 2402.05913), held against small networks in plain PyTorch, which share nothing with the product."""
