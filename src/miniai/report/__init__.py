"A finished run as pictures."
