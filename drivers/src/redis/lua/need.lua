if not declared then return { 'NOTFOUND' } end
