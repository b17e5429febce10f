"Models: layers, a small convolutional net, residual networks."
