module go_verify

go 1.20

require receivers v0.0.0

replace receivers => ../../../examples/receivers/go
