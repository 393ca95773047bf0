module receivers

go 1.20
