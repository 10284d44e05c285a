"""What tests share: phantoms, tiny models, stand-ins for processes and servers."""
